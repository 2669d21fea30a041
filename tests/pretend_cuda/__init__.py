"""A pretend GPU: tensors that say they lie on ``cuda:0`` and compute on the CPU under ATen's rules of devices.

``python -m tests.pretend_cuda ARGUMENTS`` runs pytest with it, for example ``-m cuda tests/attention``. The process
that pretends is always one of its own: what it changes in torch (device registry, ``torch.cuda``, modules, threads) is
not undone. ``test_session.py`` starts it for every test marked ``cuda`` on machines without a GPU.

What it shows: tensors of two devices that meet, results left on the wrong device, generators of the wrong device,
``.numpy()`` of a GPU tensor, integer products that CUDA has not, and every point where the host waits for the device.
What it cannot show: kernels, memory, TF32, half precision on a GPU, speed.
"""
