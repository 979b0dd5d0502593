"""The one protocol that speaks, and who fulfils it. No HTTP here; torch only in the model engines."""
