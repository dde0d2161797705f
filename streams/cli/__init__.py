"""`reel`: the command line. Exit codes: 0 done, 1 failed, 2 wrong use.

Results go to stdout, talk to stderr. Each command imports what it needs when it runs, so that
`reel --help` and wrong use answer at once.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from streams.errors import PipelineError, SettingsError

FAILED, WRONG_USE = 1, 2


def main() -> NoReturn:
    """Run the command line; every foreseen failure is one line on stderr and an exit code."""
    from streams.cli.app import app

    try:
        app()
    except SystemExit:
        raise
    except SettingsError as error:
        _end(error, _settings_exit_code(error))
    except (PipelineError, OSError) as error:  # OSError: no space, no permission, no such folder
        _end(error, FAILED)
    except _client_error() as error:
        _end(error, _client_exit_code(error))
    sys.exit(0)


def _end(error: Exception, code: int) -> NoReturn:
    print(f"reel: {error}", file=sys.stderr)
    sys.exit(code)


def _settings_exit_code(error: SettingsError) -> int:
    from streams.local.processes import StartFailed

    return FAILED if isinstance(error, StartFailed) else WRONG_USE


def _client_error() -> type[Exception]:
    # Asked only once something was raised: the client takes a while to import.
    from streams.client import ClientError

    return ClientError


def _client_exit_code(error: Exception) -> int:
    from streams.client import WrongRequest

    return WRONG_USE if isinstance(error, WrongRequest) else FAILED
