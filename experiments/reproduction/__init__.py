"""Running whole sections of the paper over several seeds, and reporting on them."""
