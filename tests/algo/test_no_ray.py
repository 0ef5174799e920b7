"""The rule of the cut: raykd.algo, and what stages share, never import Ray."""

import pkgutil
import subprocess
import sys

import raykd.algo

SHARED = ["storage", "tables", "rundir", "lock", "config", "images", "student", "ledger", "page"]


def test_algo_and_what_the_stages_share_do_not_import_ray():
    names = [module.name for module in pkgutil.walk_packages(raykd.algo.__path__, "raykd.algo.")]
    assert len(names) > 5
    script = f"""
import importlib, sys
for name in {names + ["raykd." + name for name in SHARED]}:
    importlib.import_module(name)
    if found := sorted(module for module in sys.modules if module == "ray" or module.startswith("ray.")):
        sys.exit(f"{{name}} imports {{found[:3]}}")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
