"""What each operation costs, compared with what nothing can be faster than. See README.md."""
