"""What a run does from its start to its end: one short file a job, and what all of them share."""
