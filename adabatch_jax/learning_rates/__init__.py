"""The learning rate: its text form, and its coupling to the batch size."""
