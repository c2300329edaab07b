"""The zoo: trained LoRA adapters, from which a generator learns."""
