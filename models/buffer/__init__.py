"""Dense blocks over a feature buffer: the engine of the strategies "buffer", "buffer_fast" and "buffer_small".

Read it from the top, in the order of imports:

    network         which blocks run over a buffer, which modules are called, and the warning
    eligible        why a module must be called: class, hooks, settings
    memory_plan     bottlenecks that are kept because they cost nothing
    function        the autograd function of a block with its transition
    layers          dense layers of both kinds: forward and backward
    fused_layer     dense layers whose convolutions are kernels, on GPUs
    parameters      parameters of layers, in the order in which they and their gradients are passed on
    transition      transition and final norm: forward and backward
    passes          state that these share in the forward and in the backward pass
    feature_buffer  feature buffer and gradient buffer; the mathematics
    kernels         the same operations in Triton, for GPUs; `choice` and `check` say where they are used
    workspace       operations on the rows of a block, chunk by chunk, in scratch memory
    norm_relu       norm and ReLU on rows: forward, and backward with its sums
    operations      elementwise operations and reductions
    dropout         masks
    norms           norm layers as functions of raw feature maps; statistics
    rows            feature maps as rows: views, chunks, convolutions, scratch memory
    device          the GPU that a tensor is on
    autograd        tensors in and out of structures; no second derivatives
"""
