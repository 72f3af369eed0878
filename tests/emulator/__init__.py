"""A stand-in for the Hugging Face Hub: a real HTTP server with state, that the unmodified client talks to.

    with Hub(tmp_path) as hub:
        job = HfApi(endpoint=hub.url, token=hub.token).run_uv_job("train.py")
        hub.jobs[job.id].wait()
        assert hub.jobs[job.id].stage == "COMPLETED"

By hand: `python -m tests.emulator`. A test may read every table of the Hub: `hub.jobs`, `hub.repos["tester/m"].files`,
`hub.buckets`, `hub.requests`, `hub.unknown_requests`.
"""

from tests.emulator.job import Job
from tests.emulator.server import Hub
from tests.emulator.state import Bucket, Repo, User

__all__ = ["Bucket", "Hub", "Job", "Repo", "User"]
