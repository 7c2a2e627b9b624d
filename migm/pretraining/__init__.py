"""How the bundled CIFAR-10 assets are made: feature net, tokenizer, base."""
