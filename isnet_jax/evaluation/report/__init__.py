"""The HTML report: `sections` computes plain data, the Jinja2 templates lay it out, `render` joins the two."""
