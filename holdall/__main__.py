"""`python -m holdall`, for where the `holdall` command is not on the path."""

from holdall.cli import main

main()
