"""One file for each kind of verdict; see the package above."""
