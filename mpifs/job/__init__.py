"""Assembly of a job: configuration, launch, supervisor, master, worker, control socket."""
