"""Training: a run that does not fit.

You hold a model, an optimizer and a loop that runs out of memory. Each method makes one of the things that training
holds smaller: states of the optimizer, gradients, parameters, activations; on other workers, in host memory, on
disk, or in fewer bits.
"""

__all__: list[str] = []
