"""What a run leaves behind: metrics, progress on the terminal, plots and reports."""
