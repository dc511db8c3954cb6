"""Rewards: string_check, text_similarity, python, score_model, label_model and multi, in OpenAI's shapes."""
