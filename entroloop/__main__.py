"""`python -m entroloop …`: the command line."""

from entroloop.launcher.__main__ import main

if __name__ == "__main__":
    main()
