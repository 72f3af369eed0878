"""`launch dashboard` from end to end: the real command, the real Trackio, and a real browser that looks at the page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from launcher.jobs import folder as runs
from launcher.jobs.base import Job, now
from tests.faults import command
from tests.unit.sample import plan, request

LAUNCH = str(Path(sys.executable).with_name("launch"))
CHROMIUM = "/usr/bin/chromium"
JOB = "68780d00bbe36d38803f645f"
NAME = 'houses "; $(touch owned) <b>'
LOG = """\
== train
eval step 0/4 | loss 3.2100
step 1/4 | loss 2.5000 | lr 1.90e-04 | 3210 tok/s | eta 312s
step 2/4 | loss 2.0000 | lr 1.00e-04 | 3210 tok/s | eta 200s
resumed from step 1
step 2/4 | loss 2.1000 | lr 1.00e-04 | 3210 tok/s | eta 200s
step 3/4 | loss 1.5000 | lr 0.50e-04 | 3210 tok/s | eta 100s
eval step 3/4 | loss 1.4000
"""


@contextmanager
def dashboard(*args: str, **env: str) -> Iterator[str]:
    """The address that the command prints; it is ended as Ctrl-C ends it, and has to end well."""
    command = [LAUNCH, "dashboard", "--no-open", *args]
    with subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(20) == 0
            finally:
                process.kill()


def ask(url: str, name: str, **values: Any) -> Any:
    """What the dashboard's API answers."""
    place = urlsplit(url)
    asked = urllib.request.Request(
        f"{place.scheme}://{place.netloc}/api/{name}", json.dumps(values).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=10) as response:
        return json.load(response)["data"]


def logs(url: str) -> list[dict[str, Any]]:
    """Everything logged in the run that the address selects."""
    chosen = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    found: list[dict[str, Any]] = ask(url, "get_logs", project=chosen["project"], run_id=chosen["run_ids"])
    return found


def keep_job() -> runs.Run:
    """A Job that ran long ago, as this launcher keeps it; the service knows it no more."""
    run = runs.create(request("pass", of=plan(run_name=NAME)), "hub").rename(JOB)
    job = Job(
        id=JOB, url=f"http://127.0.0.1:9/jobs/me/{JOB}", backend="hub", stage="COMPLETED", message=None,
        flavor="t4-small", labels={}, created_at=now(),
    )  # fmt: skip
    run.write(runs.STATUS, job.as_dict() | {"namespace": "me"})
    run.write(runs.LOG, LOG)
    return run


def test_shows_a_job_from_its_transcript_each_time_anew(tmp_path: Path) -> None:
    run = keep_job()
    # A token and a Space in the environment: neither gets to the dashboard, and nothing is there to be reached.
    env = {
        "HF_TOKEN": "hf_" + "x" * 30, "HF_ENDPOINT": "http://127.0.0.1:9", "TRACKIO_SPACE_ID": "me/unasked",
        "TRACKIO_DIR": str(tmp_path / "own"),
    }  # fmt: skip
    before = set(run.folder.iterdir())
    with dashboard(JOB, **env) as url:
        assert urlsplit(url).hostname == "127.0.0.1"
        assert "token" not in url
        assert ask(url, "get_all_projects") == ["tests"]
        assert [found["name"] for found in ask(url, "get_runs_for_project", project="tests")] == [NAME]
        (folder,) = set(run.folder.iterdir()) - before
        assert folder.stat().st_mode & 0o777 == 0o700
        losses = [(found["step"], found["loss"]) for found in logs(url) if "loss" in found]
        assert losses == [(1, 2.5), (2, 2.0), (3, 1.5)]
        assert [found["eval/loss"] for found in logs(url) if "eval/loss" in found] == [3.21, 1.4]
    # Nothing of it is left for the next one.
    assert set(run.folder.iterdir()) == before
    assert not (tmp_path / "own").exists()


def test_a_job_without_a_step_and_a_machine_without_runs_say_so(tmp_path: Path) -> None:
    run = keep_job()
    run.write(runs.LOG, "== load\nerror: there is no such dataset\n")
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "TRACKIO_DIR": str(tmp_path / "none")}
    for args, said in (([JOB], "has logged no step"), ([], f"no run of this machine has metrics in {tmp_path}")):
        done = command.run("dashboard", "--no-open", *args, env=env)
        assert done.returncode == 2, done.stderr
        assert said in " ".join(done.stderr.split())


def train(model: Path, folder: Path, **env: str) -> str:
    """The id of a short real run on this machine."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"House {n}?"},
                {"role": "assistant", "content": f"House {n} is red."},
            ]
        }
        for n in range(12)
    ]
    (folder / "houses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [
        LAUNCH, "--model", str(model), "--dataset", "houses.jsonl", "--local", "--max-steps", "6", "--eval-rows", "4",
        "--batch-size", "4", "--max-length", "128", "--learning-rate", "2e-3", "--run-name", "red-houses", "--no-push",
        "--json",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(json.loads(done.stdout)["id"])


# Of the plot under that title: how high the red line stands in each column of pixels that it crosses, from the left.
CURVE = ".plot-container:has(.plot-title:text-is('loss')) canvas"
READ = """canvas => {
  const {width, height} = canvas, heights = [];
  const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  for (let x = 0; x < width; x++) for (let y = 0; y < height; y++) {
    const at = 4 * (y * width + x);
    if (pixels[at] > 200 && pixels[at + 1] < 90 && pixels[at + 2] < 90 && pixels[at + 3] > 200) {
      heights.push(height - y); break;
    }
  }
  return heights;
}"""


def look(run: str, name: str, screenshots: Path) -> None:
    """The page of a run in a browser shows its name and its falling loss, and loads nothing from elsewhere."""
    from playwright.sync_api import sync_playwright

    with (
        dashboard(run, HF_ENDPOINT="http://127.0.0.1:9", TRACKIO_COLOR_PALETTE="#ff0000") as url,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        hosts: set[str | None] = set()
        page.on("request", lambda sent: hosts.add(urlsplit(sent.url).hostname))
        page.goto(url)
        canvas = page.locator(CURVE).first  # `eval/loss` is in a section of its own below
        canvas.wait_for(timeout=30_000)
        page.wait_for_timeout(1000)  # the line is drawn after the axes
        page.screenshot(path=screenshots / f"{run}.png")
        assert name in page.inner_text("body")
        heights = canvas.evaluate(READ)
        # A line over most of the plot, that falls as the losses do.
        assert len(heights) > 100
        assert heights[0] > heights[-1] + 100
        assert hosts == {"127.0.0.1"}


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where pictures of the page go: SCREENSHOTS, for whoever wants to look at them."""
    return Path(os.environ.get("SCREENSHOTS", tmp_path))


@pytest.mark.browser
def test_a_browser_shows_a_job_and_its_loss_curve(screenshots: Path) -> None:
    keep_job()
    look(JOB, NAME, screenshots)


@pytest.mark.browser
def test_a_browser_shows_a_run_of_this_machine_and_its_loss_curve(
    smollm2: Path, tmp_path: Path, screenshots: Path
) -> None:
    # With a token and a Space in the environment a run still keeps its metrics here: one that went to the Space would
    # have found no network, and would have none.
    run_id = train(smollm2, tmp_path, HF_TOKEN="hf_" + "x" * 30, TRACKIO_SPACE_ID="me/unasked", HF_HUB_OFFLINE="1")
    look(run_id, "red-houses", screenshots)
