"""The benchmark suites of torchsmith, driven by the op descriptions; ``torchsmith bench`` runs them."""
