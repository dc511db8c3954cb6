"""OpenAI's routes under ``/v1``, one router a resource."""
