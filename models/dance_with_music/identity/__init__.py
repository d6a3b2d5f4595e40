"""Identity: face encoder, face tokens, identity attention and loss."""
