"""Dense blocks over a feature buffer: the engine of the strategies "buffer" and "buffer_fast".

Read it from the top, in the order of imports:

    network         which blocks run over a buffer, which modules are called, and the warning
    eligible        why a module must be called: class, hooks, settings
    memory_plan     bottlenecks that are kept because they cost nothing
    function        the autograd function of a block with its transition
    layers          dense layers of both kinds: forward and backward
    transition      transition and final norm: forward and backward
    passes          state that these share in the forward and in the backward pass
    feature_buffer  feature buffer, gradient buffer, workspace; the mathematics
    norms           batch norm taken apart
    dropout         masks
    operations      elementwise operations and reductions, which kernels of a device can replace
    rows            feature maps as rows: views, chunks, convolutions, scratch memory
    autograd        tensors in and out of structures; no second derivatives
"""
