"""Simulations of active learning on a pool whose labels are known: arms by seeds. Arrays and functions of them; no Ray.

Begin with ``definition.py`` (what one may ask for), then ``cell.py`` (one arm with one seed). What runs the cells side
by side is ``raykd/stages/simulate.py``. May import everything but ``raykd.stages`` and Ray.
"""
