"""MONAI Deploy: operators that run a bundle on images or raw measurements, in float32 and with their affines.

``runner`` and ``images`` need no SDK; ``operators`` and ``application`` need the MONAI Deploy App SDK, which has an
environment of its own (``ci/interop_env.sh deploy``). See ``docs/deploy.md`` and ``examples/deploy``.
"""
