"""Whether launchd would understand these property lists, and Orchard the commands in them. Called by deploy/check.sh.

A Mac's plutil only looks whether a plist is well-formed. Here each key must also be one of launchd.plist(5), with a value of its
type, and the command must be one that the program takes (it is asked for its help with these very arguments).
"""

import os
import plistlib
import subprocess
import sys

KEYS = {
    "Label": str, "ProgramArguments": list, "EnvironmentVariables": dict, "UserName": str, "WorkingDirectory": str, "Umask": int,
    "RunAtLoad": bool, "KeepAlive": bool, "ThrottleInterval": int, "AbandonProcessGroup": bool, "ExitTimeOut": int,
    "HardResourceLimits": dict, "SoftResourceLimits": dict, "StandardOutPath": str, "StandardErrorPath": str,
}


def wrong(path):
    """What is wrong with the plist in the file, a line each."""
    with open(path, "rb") as file:
        plist = plistlib.load(file)
    for key, value in plist.items():
        if key not in KEYS:
            yield f"{key} is no key that launchd is known to have"
        elif type(value) is not KEYS[key]:
            yield f"{key} is a {type(value).__name__} and should be a {KEYS[key].__name__}"
    if f"{plist['Label']}.plist" != os.path.basename(path):
        yield f"the label {plist['Label']} is not the file's name"
    program, *arguments = plist["ProgramArguments"]
    if not program.startswith("/"):
        yield f"launchd finds no program by the name {program}"
    asked = subprocess.run([os.environ["ORCHARD"], *arguments, "--help"], capture_output=True, text=True)
    if asked.returncode != 0:
        yield f"orchard {' '.join(arguments)}: {asked.stderr.strip()}"
    # VMs must outlive the worker.
    if arguments[0] == "worker" and not plist.get("AbandonProcessGroup"):
        yield "AbandonProcessGroup is not set: launchd would end VMs with the worker"


failures = [f"{path}: {what}" for path in sys.argv[1:] for what in wrong(path)]
if len(sys.argv) < 3:
    failures.append("there should be two plists")
for failure in failures:
    print(failure, file=sys.stderr)
sys.exit(1 if failures else 0)
