"""`python -m vm_onetoone_nat`, the same as the command."""

from vm_onetoone_nat.cli import main

main()
