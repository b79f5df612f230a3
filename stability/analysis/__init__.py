"""What a sweep's files say: numbers computed from results, without training code or accelerator."""
