"""What a job may gain and cost, from a few plain rollouts before it starts."""
