"""The environment of pip: it downloads from where the user says, and nothing else is the user's.

Imports the standard library only.
"""

import ast
import os
import subprocess
from collections.abc import Mapping

from oral_lib.errors import PreflightError

# where to download from; other settings change what is installed, or where to
DOWNLOAD_SETTINGS = (
    *("index-url", "extra-index-url", "no-index", "find-links", "trusted-host", "cert"),
    *("client-cert", "proxy", "timeout", "default-timeout", "retries", "cache-dir"),
    *("no-cache-dir", "keyring-provider", "prefer-binary", "use-deprecated"),
)


def pip_environment(python: str, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment variables for the pip of `python`, with DOWNLOAD_SETTINGS of pip.conf.

    Args:
        python: the Python that has pip.
        inherited: the variables to start from.

    Raises:
        PreflightError: pip cannot read the user's pip.conf.
    """
    variables = {key: text for key, text in inherited.items() if not key.startswith("PIP_")}
    file = {key: text for key, text in inherited.items() if key == "PIP_CONFIG_FILE"}
    done = subprocess.run(
        [python, "-m", "pip", "config", "list"],
        env=variables | file,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PreflightError(f"pip cannot read its configuration: {lines[-1]}")
    configured = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    for name in DOWNLOAD_SETTINGS:
        variable = "PIP_" + name.upper().replace("-", "_")
        for section in ("global", "install"):
            if (text := configured.get(f"{section}.{name}")) is not None:
                variables[variable] = ast.literal_eval(text)
        if variable in inherited:
            variables[variable] = inherited[variable]
    return variables | {"PIP_CONFIG_FILE": os.devnull}
