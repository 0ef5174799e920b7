"""The distribution: every module here reads tables, calls ``raykd.algo`` and writes a table.

Ray reads these variables when it is imported, so they are set here, before any stage imports it.
"""

import os
import secrets
import sys
from importlib.util import find_spec

from raykd.errors import UserError

if _missing := [_name for _name in ("ray", "faiss", "jinja2") if find_spec(_name) is None]:
    raise UserError(
        f"the jobs need {', '.join(_missing)}, which raykd alone does not bring: pip install 'raykd[campaign]'"
    )

for _name, _value in {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # the controller's polling; the default of 2 s is felt in short rounds
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # stages/progress.py shows ours
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray's C++ prints a harmless error for every actor pool (ray#53727)
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONWARNINGS": "ignore::DeprecationWarning,ignore::FutureWarning",  # of Ray's own workers
}.items():
    os.environ.setdefault(_name, _value)

# A machine of a cluster that vanishes sends no goodbye: calls to it fail after 20 s instead of 7 minutes. The head's
# side of it is in cluster.yaml and jobs/deploy/; a Ray of one machine has none to lose.
KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "10000", "RAY_grpc_client_keepalive_timeout_ms": "10000"}
if os.environ.get("RAY_ADDRESS", "local") not in ("", "local"):
    for _name, _value in KEEPALIVE.items():
        os.environ.setdefault(_name, _value)

# A cluster that wants a token gets the one that is here: Ray sends none unless it is told to, even where there is one.
if os.environ.get("RAY_ADDRESS") and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
    _file = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    if "RAY_AUTH_TOKEN" in os.environ or os.path.exists(_file):
        os.environ["RAY_AUTH_MODE"] = "token"

# A Ray that raykd starts itself listens on the network like any other: it gets a token that no other process knows.
if not {"RAY_AUTH_MODE", "RAY_ADDRESS"} & os.environ.keys() and "ray" not in sys.modules:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
