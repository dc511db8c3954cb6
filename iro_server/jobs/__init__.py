"""Fine-tuning jobs: a queue in the database, one worker process a job, and a supervisor that leaves none hanging."""
