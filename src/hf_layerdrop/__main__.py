"""``python -m hf_layerdrop``: the command line, for launchers that start modules."""

from hf_layerdrop.cli import main

if __name__ == "__main__":
    main()
