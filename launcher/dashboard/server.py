"""Serves Trackio's dashboard to this machine, for `launch dashboard`, which runs it with uv; needs trackio.

The first line on stdin is a JSON object: `port` (null: the first free one from 7860 on), `project` and `run` (null:
every project), `between` (when the run began and ended, ISO 8601 or null), `config`, `fed` (the metrics come on stdin)
and `live` (more of them may come).
Further lines, where it is `fed` or `live`: `metrics` with their `step`, and `end` after the last ones.

One line answers, once there are metrics: `url`; or `missing` with the folder that holds none, or `taken` where no port
is to be had. The server ends when stdin does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

END = {"gone": True}


def main() -> int:
    lines: queue.Queue[dict] = queue.Queue()
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=read, args=(lines,), daemon=True).start()
    answers = sys.stdout
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):  # trackio talks on stdout
        import trackio
        from trackio.utils import TRACKIO_DIR, canonical_project_name

        project = asked["project"] and canonical_project_name(asked["project"])
        fed = None
        if asked["fed"]:
            hardware = {"auto_log_gpu": False, "auto_log_cpu": False}  # this machine's is not the Job's
            fed = trackio.init(project, asked["run"], config=asked["config"], embed=False, **hardware)
        url, ended = None, not asked["live"] and not fed
        while True:
            if url is None and (found := find(project, asked["run"], asked["between"])) is not None:
                try:
                    url = show(asked["port"], project, found)
                except OSError as error:
                    print(json.dumps({"taken": str(error)}), file=answers, flush=True)
                    return 0
                print(json.dumps({"url": url}), file=answers, flush=True)
            elif url is None and ended:
                print(json.dumps({"missing": str(TRACKIO_DIR)}), file=answers, flush=True)
                return 0
            try:
                item = lines.get(timeout=0.5)
            except queue.Empty:
                continue
            if item is END:
                return 0
            if "metrics" in item:
                fed.log(item["metrics"], item["step"])
            if "end" in item:
                ended = True
                if fed:
                    fed.finish()


def read(lines: queue.Queue[dict]) -> None:
    for line in sys.stdin:
        lines.put(json.loads(line))
    lines.put(END)


def find(project: str | None, run: str | None, between: list[str | None] | None) -> list[str] | None:
    """The ids of the runs to select; none while there is nothing to show."""
    from trackio.sqlite_storage import SQLiteStorage

    if project is None:
        return [] if SQLiteStorage.get_projects() else None
    began, ended = between
    for record in sorted(SQLiteStorage.get_run_records(project), key=lambda record: moment(record["created_at"])):
        # A name may have been given to several runs.
        when = moment(record["created_at"])
        if record["name"] == run and moment(began) <= when and (ended is None or when <= moment(ended)):
            return [record["id"]]
    return None


def moment(text: str | None) -> datetime:
    """A time, aware; the earliest there is where it is not known."""
    found = datetime.fromisoformat(text or "1970-01-01T00:00:00+00:00")
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def show(port: int | None, project: str | None, run_ids: list[str]) -> str:
    """Start the server and return the page's address: without the token that lets a page delete and rename runs."""
    import trackio

    _, url, _, _ = trackio.show(
        project,
        open_browser=False,
        block_thread=False,
        host="127.0.0.1",
        server_port=port,
        share=False,
        mcp_server=False,
    )
    # Unsmoothed: at a run's few steps Trackio's usual smoothing shows another curve.
    selected = {"project": project, "run_ids": ",".join(run_ids), "smoothing": 0} if project else {}
    return f"{url.rstrip('/')}/" + (f"?{urlencode(selected)}" if selected else "")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = main()
    except KeyboardInterrupt:
        status = 0
    sys.stderr.flush()
    os._exit(status)  # the server's threads, and the one that reads stdin, would keep it waiting
