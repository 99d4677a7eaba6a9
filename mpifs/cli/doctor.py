"""`mpifs doctor`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> int:
    """Say what this machine lacks, and the command that mends it."""
    from mpifs.job.doctor import MISSING, examine

    findings = examine()
    is_fit = all(finding.state != MISSING for finding in findings)
    if as_json:
        print(json.dumps({"ok": is_fit, "checks": [finding._asdict() for finding in findings]}))
        return 0 if is_fit else 1
    for finding in findings:
        typer.echo(f"{finding.state:8}{finding.check}: {finding.detail}")
        if finding.mend:
            typer.echo(f"{'':8}→ {finding.mend}")
    return 0 if is_fit else 1
