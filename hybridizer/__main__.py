"""`python -m hybridizer` is `hybridize`: what launchers of several processes start."""

from hybridizer.cli import main

if __name__ == "__main__":
    main(prog_name="hybridize")
