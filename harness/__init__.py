"""Jobs: recurring pieces of work with a definition of done."""

from .job import PREFIX, Job, load_jobs, parse_job, prepare

__all__ = ["PREFIX", "Job", "load_jobs", "parse_job", "prepare"]
