"""Training of the bundled CIFAR-10 assets: feature net, tokenizer, bases."""
