"""One session of a study: trials asked, dealt, recorded and told, through all that goes wrong."""
