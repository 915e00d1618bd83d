"""Lightning callbacks: what is done when, apart from what it does."""
