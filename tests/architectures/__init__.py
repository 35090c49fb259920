"""Every architecture of transformers, tiny: what the support matrix walks over, and the sample that the tests take."""
