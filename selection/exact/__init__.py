"""The exact engine: bounds from matrix products, decisions by canonical distances. It knows no rule."""
