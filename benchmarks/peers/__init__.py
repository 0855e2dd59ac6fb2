"""Other systems, each run by its own module in a virtual environment of its own."""
