"""`python -m gradmm`."""

from gradmm.cli import main

main()
