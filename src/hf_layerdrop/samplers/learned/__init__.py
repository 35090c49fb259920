"""Learn the drop rates while the model trains: the paper's data driven strategy (3.2.2).

The paper says in two sentences what is learned: one rate ``p_d`` a layer, a non-linear function of the layer's
activation, through a softmax, such that the average is the target rate. There is no public implementation, so this one
derives what it does. All of it holds for each stack (encoder, decoder) on its own, but for the loss, which they share.

**Rates.** While a layer ``d`` runs, three norms are taken of its activation: of what comes in, what goes out, and the
difference. They give two features, the logarithm of how much the layer lengthens the hidden state and one minus the
cosine of the angle by which it turns it; ``s_d`` is their moving average, standardised over the layers of the stack.
With a weight ``w`` for each feature, shared by the layers, and an offset ``c_d`` for each layer,

    u_d = R tanh((w . s_d + c_d) / R)        q = softmax(u)        p_d = min(k q_d, highest)

where ``k`` is the one number for which the mean of ``p`` is the target. ``w`` and ``c`` start at 0, so that learning
starts from the paper's uniform rate. The tanh keeps every share within a factor ``e^(2R)`` of every other: no rate
becomes 0, so that each layer goes on being dropped now and then, and goes on being judged.

**Estimator.** The quantity to lower is ``J(p) = E[L(z)]``, the expected training loss under masks with independent
``z_d``, 1 with chance ``p_d`` where layer ``d`` is dropped. A mask is no differentiable function of ``p``, but its
probability is. The score function identity, with ``d/dp_d log P(z) = (z_d - p_d) / (p_d (1 - p_d))``, gives

    dJ/dp_d = E[ L (z_d - p_d) / v_d ] = E[L | d dropped] - E[L | d kept]        v_d = p_d (1 - p_d)

so the losses that training computes anyway are enough: no dropped layer is run, nothing is differentiated twice. Alone
it is noisy, so all that is known before the draw is taken off: for any numbers ``b`` and ``a``, the surprise
``r = L - b - sum_j a_j (z_j - p_j)`` has

    E[ r (z_d - p_d) / v_d ] = dJ/dp_d - a_d

because the ``z_j`` are independent, ``E[z_d - p_d] = 0`` and ``E[(z_d - p_d)^2] = v_d``. Hence the update

    a_d <- a_d + gain * r (z_d - p_d) / v_d

has ``dJ/dp_d`` as its fixed point: ``a_d``, the *credit* of a layer, is a moving average of unbiased estimates of the
gradient, and at the same time the baseline that frees the other layers' estimates of the noise of layer ``d``.
(Robbins and Monro's stochastic approximation; in the words of reinforcement learning, REINFORCE with a baseline that
looks at all actions but the own.) Two safeguards cost some of its exactness: a surprise beyond three standard
deviations counts as three, and the gain is lowered where several rarely dropped layers were dropped together. With
several forwards for one loss, ``z_d - p_d`` and ``v_d`` are summed over them, and ``a_d`` is the effect of one drop.

**Learning.** After each step ``w`` and ``c`` take a step down the gradient of ``T sum_d a_d q_d / sigma``. ``T`` is the
sum of the rates; ``sigma^2``, the variance of the surprises plus the mean square of the credits, makes the scale of the
loss irrelevant. The cap is left out of this gradient, since its own is 0 where it holds and a capped layer could never
come back. A weight decay pulls towards the uniform rate: where layers differ by no more than noise, so do their rates.

**When.** The rates of a step are fixed before it begins. What a step measures stays on its device; at its end the mean
over ranks is taken and the copy to the host is started, and it is read at the end of the next step, whose work has been
queued by then: nothing waits. Learning itself is arithmetic on a few numbers on the host, the same on every rank, and
draws no random numbers. ``w`` and ``c`` are no parameters of the model, and no optimizer but their own knows them.
"""
