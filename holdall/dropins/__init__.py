"""Where Holdall meets other people's formats and classes; nothing else imports those packages."""
