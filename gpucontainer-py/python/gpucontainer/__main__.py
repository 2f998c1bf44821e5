"""``python -m gpucontainer``: see :mod:`gpucontainer.command_line`."""

from .command_line import main

if __name__ == "__main__":
    main()
