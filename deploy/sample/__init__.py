"""The bundled sample: real Online Boutique calls around injected faults, and how it was built."""
