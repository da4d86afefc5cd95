"""Entry of the runner as a plain script, for `python -I -S …/swarmd/runner/__main__.py`.

Isolated from the environment and from site-packages it starts in half the time and memory; the
price is that the project's own folder has to be put on the path here.
"""

import os
import sys

if __name__ == "__main__":
    home = os.path.abspath(__file__)
    for _ in range(3):
        home = os.path.dirname(home)
    if home not in sys.path:
        sys.path.append(home)
    from swarmd.runner.main import main

    sys.exit(main(sys.argv[1:]))
