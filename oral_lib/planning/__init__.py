"""What each scale plans: base models with tasks and seeds, and the networks to train."""
