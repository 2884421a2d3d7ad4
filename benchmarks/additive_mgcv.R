# mgcv::bam(select = TRUE): a smooth a number column, a shrunken effect a level of a category.
# Rscript additive_mgcv.R FOLDER FAMILY: reads train.csv (y, then x0, x1, ...) and test.csv there, writes
# prediction.csv, and prints the CPU seconds of the fit and both versions. Text columns are categories.
suppressMessages(library(mgcv))
arguments <- commandArgs(TRUE)
file <- function(name) file.path(arguments[1], name)
train <- read.csv(file("train.csv"), stringsAsFactors = TRUE)
test <- read.csv(file("test.csv"))
terms <- character()
for (name in setdiff(names(train), "y")) {
  x <- train[[name]]
  distinct <- length(unique(x))
  if (is.factor(x)) {
    # a level that is not in train has the effect 0
    known <- levels(x)
    train[[name]] <- factor(x, levels = c(known, "unseen level"))
    seen <- as.character(test[[name]])
    test[[name]] <- factor(ifelse(seen %in% known, seen, "unseen level"), levels = c(known, "unseen level"))
    terms <- c(terms, sprintf("s(%s, bs = 're')", name))
  } else if (distinct > 3) {
    terms <- c(terms, sprintf("s(%s, bs = 'cr', k = %d)", name, min(10, distinct)))
  } else if (distinct > 1) {
    terms <- c(terms, name)
  }
}
family <- switch(arguments[2],
  binary = binomial(), gaussian = gaussian(), poisson = poisson(), gamma = Gamma(link = "log")
)
formula <- as.formula(paste("y ~", paste(terms, collapse = " + ")))
start <- proc.time()
model <- bam(formula, family, train, select = TRUE, discrete = TRUE, drop.unused.levels = FALSE)
seconds <- sum((proc.time() - start)[1:2])
write.csv(data.frame(p = as.numeric(predict(model, test, type = "response"))), file("prediction.csv"), row.names = FALSE)
cat(seconds, as.character(getRversion()), as.character(packageVersion("mgcv")), "\n")
