"""The generation and phase that a run has reached, read only from its folder: seals, leases and state.json."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entroloop.data import files
from entroloop.data.errors import UserError
from entroloop.data.progress import told
from entroloop.data.runfolder import CONFIG, Layout, Step, read_config
from entroloop.data.store.shards import REAL
from entroloop.eval.catalogue import HEADLINE, space
from entroloop.eval.report.runs import Run, read_run, run_folders
from entroloop.launcher.run import lease
from entroloop.launcher.run.phases import PHASES
from entroloop.launcher.run.recipes import is_sealed, steps
from entroloop.launcher.run.retention import size

Leases = tuple[Mapping[Path, dict[str, Any]], Mapping[Path, dict[str, Any] | None]]  # as `lease.living` returns them
MARKS = {"sealed": "done", "pending": "."}


def inspect(folder: Path) -> dict[str, Any]:
    """The state of a run, or of every run up to two levels below a folder, such as a sweep's, as plain values.

    Raises UserError when there is no run.
    """
    runs = run_folders(folder)
    if not runs:
        raise UserError(f"{folder}: not a run or a sweep (no {CONFIG} up to two levels below)")
    leases = _leases(runs)
    if runs == [folder]:
        return _with_jobs(folder, _inspect_run(folder, leases))
    found = [{**_inspect_run(run, leases), "run": str(run.relative_to(folder))} for run in runs]
    return _with_jobs(folder, {"sweep": folder.name, "runs": found})


def _leases(runs: Sequence[Path]) -> Leases:
    return lease.living(path for run in runs for path in Layout(run).all_leases())


def _with_jobs(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Adds the cluster jobs of a run or sweep, if any, and updates its status by them."""
    if not (folder / "slurm").is_dir():
        return found
    from entroloop.slurm.states import for_status

    found |= for_status(folder)
    jobs = found.get("jobs", [])
    if found.get("status", "finished") not in ("finished", "running") and jobs:
        failed = [job for job in jobs if job["state"] == "failed"]
        for state in ("running", "queued"):
            if any(job["state"] == state for job in jobs):
                found |= {"status": state, "reason": ""}
                break
        if failed:
            found |= {"status": "failed", "reason": f"{failed[0]['key']}: {failed[0]['reason']}"}
    return found


def _inspect_run(folder: Path, leases: Leases) -> dict[str, Any]:
    state, run = _state(folder, leases), read_run(folder)
    return {**state, "spread_gap": _spread_gaps(run), "vectors": run.vectors, "bytes": used(folder)}


def states(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The state of each of these runs with the last numbers of its training, as plain values."""
    leases = _leases(runs)
    return [_state(run, leases) for run in runs]


def _state(folder: Path, leases: Leases) -> dict[str, Any]:
    alive, ended = leases
    layout = Layout(folder)
    generations = int(read_config(layout)["generations"])
    sealed = is_sealed(layout)
    found = []
    for step in steps(generations):
        parts = [alive[path] for path in layout.leases(step) if path in alive]
        progress = [part["progress"] for part in parts if part["progress"]]
        state = "sealed" if sealed(step) else "running" if parts else "pending"
        found.append(
            {
                "generation": step.generation,
                "phase": step.phase,
                "state": state,
                "done": sum(float(part.get("done", 0)) for part in progress),
                "total": sum(float(part.get("total", 0)) for part in progress),
                "progress": progress,
                "owners": [f"{part['host']}:{part['pid']}" for part in parts],
            }
        )
    killed = next((value for path, value in ended.items() if value and path.is_relative_to(folder)), None)
    if all(entry["state"] == "sealed" for entry in found):
        status, reason = "finished", ""
    elif any(entry["state"] == "running" for entry in found):
        status, reason = "running", ""
    elif killed:  # a killed attempt does not update state.json: the file is missing or is of an earlier attempt
        status, reason = "stopped", f"process {killed['pid']} on {killed['host']} was killed in {killed['what']}"
    else:
        status, reason = _last_attempt(layout)
        if status in ("", "finished"):
            begun = any(entry["state"] == "sealed" for entry in found)
            status, reason = "stopped" if begun else "not begun", ""
    last = _last_line(layout, generations)
    told = {"run": folder.name, "status": status, "reason": reason}
    return {**told, "generations": generations, "phases": found, "last": last}


def _spread_gaps(run: Run) -> dict[str, dict[int, float | None]]:
    """The spread gap of every measured generation, by encoder; None where it is undefined."""
    found: dict[str, dict[int, float | None]] = {}
    for row in run.rows:
        for encoder in row.measures:
            found.setdefault(encoder, {})[row.generation or 0] = row.value(encoder, "spread_gap")
    return found


def _last_attempt(layout: Layout) -> tuple[str, str]:
    """(status, reason) as the last attempt that was not killed wrote them; empty texts where there is none."""
    try:
        value = json.loads(layout.state.read_text())
        return str(value["status"]), str(value["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def _last_line(layout: Layout, generations: int) -> dict[str, Any] | None:
    """The last numbers that training wrote to stats.jsonl: generation, kimg, loss, images_per_second, …."""
    for generation in reversed(range(generations)):
        with contextlib.suppress(OSError):
            lines = [value for _, value in files.json_lines(layout.stats(generation)) if "loss" in value]
            if lines:
                return {"generation": generation, **lines[-1]}
    return None


def watch(folder: Path, every: float) -> None:
    """Prints the table when it changes, on a terminal in place of the one before, until no run is at work.

    Ctrl-C ends it. Raises UserError as `inspect` does.
    """
    shown, idle = "", 0
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            found = inspect(folder)
            text = table(found)
            if text != shown:
                print(f"\x1b[H\x1b[2J{text}" if sys.stdout.isatty() else text, flush=True)
                shown = text
            at_work = any(run["status"] in ("running", "queued") for run in found.get("runs", [found]))
            idle = 0 if at_work else idle + 1
            if idle == 2:  # a single look may fall between two phases
                return
            time.sleep(every)


def used(run: Path) -> dict[str, int]:
    """Bytes on disk by kind: real, selected, weights, samples, features, metrics, checkpoints, and the total."""
    found: dict[str, int] = {}
    for folder, _, names in os.walk(run):
        parts = Path(folder).relative_to(run).parts
        kind = "real" if parts[:1] == ("real",) else parts[1] if len(parts) > 1 else "other"
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a temporary file of a process at work may vanish
                found[kind] = found.get(kind, 0) + os.lstat(os.path.join(folder, name)).st_size
    return {**dict(sorted(found.items())), "total": sum(found.values())}


def table(found: dict[str, Any]) -> str:
    """The state of `inspect` as a table for people: one row per generation, one column per phase."""
    if "jobs" in found:
        from entroloop.slurm import states as slurm_states

        rest = {key: value for key, value in found.items() if key != "jobs"}
        jobs = [slurm_states.JobState(**job) for job in found["jobs"]]
        return f"{table(rest)}\n{slurm_states.table(jobs, found['queue'])}"
    if "runs" in found:
        return "\n\n".join(table(run) for run in found["runs"])
    reason = f" ({found['reason']})" if found["reason"] else ""
    lines = [f"{found['run']}: {found['status']}{reason}"]
    by_step = {(p["generation"], p["phase"]): p for p in found["phases"]}
    lines += [f"real data   {_cell(p)}" for p in found["phases"] if p["generation"] == REAL and p["state"] != "sealed"]
    names = [phase.name for phase in PHASES if not phase.once]
    gaps = found["spread_gap"]
    heads = [f"spread gap ({space(encoder, found['vectors'])})" for encoder in gaps]
    lines.append("generation  " + "  ".join([*(f"{name:<9}" for name in names), *heads]))
    for g in range(found["generations"]):
        cells = [f"{_cell(by_step[g, name]):<9}" for name in names]
        for head, values in zip(heads, gaps.values(), strict=True):
            gap = values.get(g)
            cells.append(f"{'.' if gap is None else f'{gap:+.2f}':>{len(head)}}")
        lines.append(f"{g:>10}  " + "  ".join(cells).rstrip())
    for entry in found["phases"]:
        where = "" if entry["generation"] == REAL else f"generation {entry['generation']} "
        lines += [f"at work     {where}{entry['phase']}: {told(state)}" for state in entry["progress"]]
    if last := found["last"]:
        where = f"generation {last['generation']}, {last['kimg']:.1f} kimg"
        lines.append(f"last loss   {last['loss']:.3g} ({where}), {last['images_per_second']:,.0f} images/s")
    parts = ", ".join(f"{kind} {size(count)}" for kind, count in found["bytes"].items() if kind != "total")
    lines.append(f"on disk     {size(found['bytes']['total'])}: {parts}")
    return "\n".join(lines)


def listed(folder: Path) -> list[dict[str, Any]]:
    """Every run in a folder, up to two levels below, as plain values: its state, its next step and its last row.

    A run that cannot be read has the status `damaged` and the reason. Raises UserError when there is no run.
    """
    found = []
    paths = run_folders(folder)
    leases = _leases(paths)
    for path in paths:
        run: dict[str, Any] = {"run": str(path.relative_to(folder)) if path != folder else path.name}
        try:
            state, kept = _state(path, leases), read_run(path)
        except UserError as error:
            nothing = {"next": None, "row": None, "shown": None, "vectors": False}
            found.append({**run, "status": "damaged", "reason": str(error), **nothing})
            continue
        ahead = next((p for p in state["phases"] if p["state"] != "sealed"), None)
        step = None if ahead is None else str(Step(ahead["generation"], ahead["phase"]))
        last = kept.rows[-1].as_dict() if kept.rows else None
        about = {"status": state["status"], "reason": state["reason"], "next": step, "row": last}
        found.append({**run, **about, "shown": _shown(kept), "vectors": kept.vectors})
    if not found:
        raise UserError(f"{folder}: holds no run (no {CONFIG} up to two levels below)")
    return found


def _shown(run: Run) -> str | None:
    """The encoder in whose features the run selects, if they were measured, else the first one measured."""
    names = list(run.rows[-1].measures) if run.rows else []
    selecting = run.config.get("selection.encoder")
    return selecting if selecting in names else next(iter(names), None)


def list_table(runs: list[dict[str, Any]]) -> str:
    """The result of `listed` as a table for people: one line per run, with its measures in one encoder's features:
    those in which it selects, if they were measured."""
    lines = [["run", "state", "next", "measured", "encoder", *HEADLINE]]
    for run in runs:
        row = run["row"] or {"generation": "", "measures": {}}
        encoder = run["shown"] or ""
        values = [row["measures"].get(encoder, {}).get(name) for name in HEADLINE]
        encoder = space(encoder, run["vectors"])
        shown = ["" if value is None else f"{value:.4g}" for value in values]
        lines.append([run["run"], run["status"], run["next"] or "", str(row["generation"]), encoder, *shown])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    reasons = [f"{run['run']}: {run['reason']}" for run in runs if run["reason"]]
    return "\n".join([*text, *reasons])


def _cell(entry: dict[str, Any]) -> str:
    if entry["state"] == "running":
        return f"{100 * entry['done'] / entry['total']:.0f} %" if entry["total"] else "running"
    return MARKS[entry["state"]]
